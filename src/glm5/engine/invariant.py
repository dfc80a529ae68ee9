from glm5.engine.forward import Network


class InvariantNetwork(Network):
    pass
