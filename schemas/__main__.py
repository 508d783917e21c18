"""`python -m schemas` writes the JSON Schema of each event type beside this file."""

import json
from pathlib import Path

from schemas.events import EVENT_MODELS

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def generate() -> dict[str, str]:
    """File name -> contents."""
    return {
        f"{name}.schema.json": json.dumps({"$schema": DIALECT, **model.model_json_schema(by_alias=True)}, indent=2)
        + "\n"
        for name, model in EVENT_MODELS.items()
    }


def main() -> None:
    directory = Path(__file__).parent / "json"
    directory.mkdir(exist_ok=True)
    for name, contents in generate().items():
        (directory / name).write_text(contents)


if __name__ == "__main__":
    main()
