"""What the router decides, as pure values and functions: no network, no clock, no event loop."""
