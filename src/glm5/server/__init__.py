"""Tokens over HTTP: the OpenAI and Anthropic surfaces, token-in token-out for training, metrics and a chat page."""
