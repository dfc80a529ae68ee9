"""Text to tokens and back: the tokenizer, and everything that turns messages into one token stream."""
