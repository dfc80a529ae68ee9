"""Tasks with verifiable rewards: each environment gives instructions, talks to a model, and grades what it did."""
