"""A run's recipe: every number of a run in one TOML file, typed and checked before anything starts.

sections.py   the settings, each with what it means and where its value comes from
schema.py     a whole recipe, and the rules between its sections
load.py       TOML and `key=value` overrides → a recipe, or one line for each mistake
toml.py       a recipe → TOML
explain.py    every setting in words
"""

from glm5.recipe.explain import Setting, settings
from glm5.recipe.load import load_recipe, load_rl_request, load_sft_section
from glm5.recipe.pretrain import Phase, PretrainSection
from glm5.recipe.schema import Recipe
from glm5.recipe.sections import DataSection, ModelSection, TokenizerSection
from glm5.recipe.sft import SftSection, SftSource

__all__ = [
    "DataSection",
    "ModelSection",
    "Phase",
    "PretrainSection",
    "Recipe",
    "Setting",
    "SftSection",
    "SftSource",
    "TokenizerSection",
    "load_recipe",
    "load_rl_request",
    "load_sft_section",
    "settings",
]
