"""Prompts: where they come from, their order, and their embeddings."""
