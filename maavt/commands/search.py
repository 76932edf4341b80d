"""`maavt search QUERY --in vectors.parquet --by sound|picture`: what looks as the query sounds, or sounds as it looks.

By sound, the sound of QUERY is compared with the pictures of the table that maavt embed wrote; by picture, its picture
with the sounds. One line of JSON per hit, the nearest first, one for each file. The search is exact: one product of
matrices, which takes a second and 1 GB for a million rows. Beyond some millions put the vectors into an index of FAISS
(IndexFlatIP is exact on a GPU; IndexHNSWFlat or IndexIVFPQ with the inner product are not, and are quick).
"""

import argparse
import json

from maavt.commands.options import add_model, named, number, path
from maavt.errors import UserError
from maavt.recordings.trained import Trained
from maavt.recordings.vectors import SIDES, nearest, read_side
from maavt.recordings.windows import File


def main(arguments: list[str] | None = None) -> None:
    """Print the nearest rows."""
    parser = argparse.ArgumentParser("maavt search", description=__doc__)
    parser.add_argument("query", type=named, metavar="QUERY", help="a video with sound")
    parser.add_argument("--in", dest="vectors", type=path, required=True, metavar="FILE", help="from maavt embed")
    parser.add_argument("--by", choices=SIDES, default="sound", help="what of QUERY to go by (default: %(default)s)")
    parser.add_argument("--top", type=number, default=5, metavar="N", help="hits (default: %(default)s)")
    add_model(parser)
    options = parser.parse_args(arguments)
    model = Trained(options.model, options.device, vectors=True)
    against = SIDES[1 - SIDES.index(options.by)]
    vectors, rows = read_side(options.vectors, against, model.sha256)
    query = []
    for part in model.vectors([File(options.query, named=True)], workers=0):
        if isinstance(part, dict):
            raise UserError(f"{options.query}: {part['reason']}")
        query += part
    for row, similarity in nearest(query, options.by, vectors, rows, options.top):
        print(json.dumps({key: value for key, value in row.items() if value is not None} |
                         {"similarity": round(similarity, 4)}))
