"""Labels a photo by a server that speaks the Open Inference Protocol (KServe's v2), as Triton does.

    python scripts/serving/ask.py scenes.bundle http://127.0.0.1:8000/v2/models/scenes photo.jpg

The server has the model alone: decoding, resizing and names are here, by `run.py` of the bundle,
whose line of JSON is printed. NumPy, Pillow and the bundle are all that it needs.
"""

import argparse
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def ask(url: str, name: str, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs of a model for its input of that name; pixels go as bytes, answers as JSON."""
    tensor = {"name": name, "shape": pixels.shape, "datatype": "UINT8"}
    tensor["parameters"] = {"binary_data_size": pixels.nbytes}
    header = json.dumps({"inputs": [tensor]}).encode()
    request = urllib.request.Request(
        f"{url}/infer",
        header + pixels.tobytes(),
        {
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": str(len(header)),
        },
    )
    with urllib.request.urlopen(request) as answer:
        outputs = json.load(answer)["outputs"]
    return {of["name"]: np.array(of["data"]).reshape(of["shape"]) for of in outputs}


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("url", metavar="URL", help="of the model, .../v2/models/NAME")
    parser.add_argument("photo", metavar="PHOTO")
    given = parser.parse_args()
    sys.path.insert(0, str(given.bundle))
    import run

    description: dict[str, Any] = json.loads((given.bundle / "model.json").read_text("utf-8"))
    how, rows = description["preprocessing"], description["input"]["shape"][0]
    try:
        with Image.open(given.photo) as image:
            photo = run.to_rgb(image, how["range"])
        pixels = run.square(photo, how)[None].repeat(1 if rows == "batch" else rows, axis=0)
        found = ask(given.url, description["input"]["name"], pixels)
    except urllib.error.HTTPError as error:
        parser.exit(1, f"error: {given.url} says {error.code}: {error.read().decode()[:500]}\n")
    except Exception as error:  # Pillow raises nearly anything
        parser.exit(1, f"error: {given.photo}: {error}\n")
    outputs = {name: of[0] for name, of in found.items()}
    print(json.dumps(run.described(outputs, *photo.size, description, None)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
