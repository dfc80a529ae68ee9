"""Print every setting of a recipe as a Markdown table: the one in docs/recipes.md, which a test compares with it.

python scripts/settings_table.py
"""

from glm5.recipe import Setting, settings


def settings_table() -> str:
    """One row a setting, in the order of the schema; no line break at the end."""
    head = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    return "\n".join(head + [_row(setting) for setting in settings()])


def _row(setting: Setting) -> str:
    default = "required" if setting.required else "" if setting.default is None else f"`{setting.default}`"
    return f"| `{setting.key}` | {setting.type} | {default} | {setting.description} |"


if __name__ == "__main__":
    print(settings_table())
