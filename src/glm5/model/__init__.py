"""The network: configuration, attention, indexer, experts, multi-token prediction, and the checkpoint that holds it."""
