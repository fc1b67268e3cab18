"""Problems: a model, a loss and a batch of data, seen as one function θ ↦ loss."""
