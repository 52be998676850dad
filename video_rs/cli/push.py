"""Publish a checkpoint on the Hugging Face hub: safetensors and a model card, in one commit.

tools/push_weights.py --weights runs/mine --repo me/mine
tools/push_weights.py --weights runs/mine --repo me/mine --private
tools/push_weights.py --weights runs/mine --repo me/mine --out card     # write the files to a folder instead

Log in first, with `hf auth login` or HF_TOKEN. The model card has the metrics of the last test of the checkpoint on the
test split, its data and recipe, and what it started from under which licence. Anybody can then use
--weights hf-hub:me/mine.
"""

from __future__ import annotations

import sys

from video_rs import terminal
from video_rs.cli.common import Parser, command, output_path, program


def main(argv: list[str]) -> int:
    """Entry point of ``tools/push_weights.py`` and ``video-rs push``."""
    parser = Parser(__doc__, prog=program("push"))
    parser.add_weights()
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME", help="the repository; made if it does not exist")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    help = "write the files to this folder and push nothing"
    parser.add_argument("--out", type=output_path, metavar="FOLDER", help=help)
    args = parser.parse_intermixed_args(argv)
    from video_rs.inference.push import push, write_files

    def warn(text: str) -> None:
        terminal.write(f"warning: {text}", sys.stderr)

    if args.out:
        write_files(args.out, args.weights, args.repo, warn=warn)
        print(f"wrote {args.out}")
        return 0
    url = push(args.weights, args.repo, private=args.private, warn=warn)
    print(f"pushed to {url}; next: {command('predict', '--weights', f'hf-hub:{args.repo}', 'clip.mp4')}")
    return 0
