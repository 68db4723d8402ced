"""`mmsearch index build|info`: search engines of one's own, from passages, pictures or a cache of image searches."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

index = typer.Typer(
    no_args_is_help=True,
    help="Build a search engine of your own, or look at one.",
    epilog="Examples: `mmsearch index build text wiki.parquet --out indexes/wiki`, `mmsearch index info indexes/wiki`",
)


@index.command(
    name="build",
    epilog="Examples: `mmsearch index build text wiki/ --out indexes/wiki --text-column contents`,"
    " `mmsearch index build image pictures.parquet --out indexes/pictures --model models/siglip --title-column name`,"
    " `mmsearch index build image rows.parquet --out indexes/pictures --vectors clip.npy --model models/clip`,"
    " `mmsearch index build fvqa fvqa_train_image_search_results_cache.pkl --questions FVQA/ --out indexes/fvqa`",
)
def index_build(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="text, image, or fvqa (MMSearch-R1's cache pickles).")],
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE", help="Parquet files or folders (local or s3://); pictures; cache files."),
    ],
    out: Annotated[str, typer.Option(metavar="FOLDER", help="Where the index goes, local or s3://.")],
    force: Annotated[bool, typer.Option("--force", help="Replace the index that is there.")] = False,
    text_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Default: text or contents; for pictures text or caption.")
    ] = None,
    title_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Default: title, where it is there.", show_default=False)
    ] = None,
    url_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Default: url, where it is there.", show_default=False)
    ] = None,
    stopwords: Annotated[
        str | None, typer.Option(metavar="LANGUAGE", help="text: en (default), de, fr, ..., or '' for none.")
    ] = None,
    image_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="image: bytes or paths (default: image, images or path).")
    ] = None,
    pictures_root: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="image, fvqa: where paths start (default: beside the file).")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="image: a CLIP-like model of transformers that embeds them.")
    ] = None,
    vectors: Annotated[
        str | None, typer.Option(metavar="FILE", help="image: ready vectors, a .npy parallel to the rows.")
    ] = None,
    vector_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="image: ready vectors, a column of lists.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="image: cpu, cuda, ... (default: cuda where there is one).")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="image: pictures in one forward pass (default: 32).")
    ] = None,
    kind_of_index: Annotated[
        str | None,
        typer.Option("--index", metavar="KIND", help="image: flat (exact), ivf, hnsw, or auto (default) by size."),
    ] = None,
    exact_below: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="image: vectors from which auto is hnsw (default: 200000).")
    ] = None,
    thumbnail_side: Annotated[
        int | None, typer.Option(metavar="PIXELS", min=0, help="image, fvqa: at most; 0: none (default: 224).")
    ] = None,
    questions: Annotated[
        list[str] | None,
        typer.Option(metavar="PARQUET", help="fvqa: the questions' files, with data_id and images; repeatable."),
    ] = None,
) -> None:
    """Write an index of passages or pictures, or import a cache of image searches, as one folder.

    It is there whole or not at all; the last line printed is the setting that puts it to use.
    """
    from workflows.index import build as build_index

    options = {
        "text_column": text_column,
        "title_column": title_column,
        "url_column": url_column,
        "stopwords": stopwords,
        "image_column": image_column,
        "pictures_root": pictures_root,
        "model": model,
        "vectors": vectors,
        "vector_column": vector_column,
        "device": device,
        "batch": batch,
        "index": kind_of_index,
        "exact_below": exact_below,
        "thumbnail_side": thumbnail_side,
        "questions": questions or None,
    }
    try:
        build_index(kind, sources, out, options, force=force)
    except KeyboardInterrupt:
        print("mmsearch: stopped; nothing was written.", file=sys.stderr)
        raise typer.Exit(130) from None


@index.command(name="info", epilog="Example: `mmsearch index info indexes/wiki --json`")
def index_info(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="An index, local or s3://.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Say what an index holds and how it was built."""
    from workflows.index import info

    info(folder, as_json)
