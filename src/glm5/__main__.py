"""`python -m glm5`, which is how torchrun starts it."""

from glm5.cli import main

main()
