"""Where torch ends: tracing a model, raising it into a Graph, binding its tensors, and running what no operator claims."""
