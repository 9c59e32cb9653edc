"""Which weight met which activations in a forward, seen from the function calls themselves."""
