"""The GLM-5 system: network, training, agents, deployment. One code path at every scale."""

__version__ = "0.1.0"
