"""Hot numeric kernels. Each has a plain PyTorch reference, and every faster form must equal it."""
