"""Hand-written rows of the official files."""

from __future__ import annotations

from typing import Any


def product(asin: str, name: str, **changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "asin": asin,
        "name": name,
        "full_description": f"about the {name}",
        "small_description": ["soft", "machine wash"],
        "pricing": "$20.00",
        "images": ["one.jpg"],
        "category": "fashion",
        "query": " Shirts ",
        "product_category": "Clothing › Men › Shirts",
        "customization_options": {"Color": [{"value": "Red"}, {"value": "Navy/White"}], "Size": [{"value": " Small "}]},
    }
    return row | changes


def record(text: str, attributes: list[str], options: list[str]) -> dict[str, Any]:
    return {"instruction": text, "instruction_attributes": attributes, "instruction_options": options}
