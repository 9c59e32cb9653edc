"""Which weight met which activations in a forward pass, read from the function calls themselves."""
