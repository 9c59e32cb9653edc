"""How a model's weights are used: importance, entropy and effective weights, layer by layer."""
