"""What is trained: architectures, LightningModules, data, metrics and recorders, over the layers of `kernels`."""
