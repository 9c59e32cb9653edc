"""Pictures: each is ``x_data(...)``, a dataclass, then ``plot_x(data, ax=None)``, a figure."""
