"""Contrastive learning, the whole way through: train, see and use an embedding."""
