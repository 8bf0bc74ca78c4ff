"""Annotation formats. Importing this package registers every reader."""

from minigpt4.datasets.readers.cc_sbu_align import CcSbuAlignReader
from minigpt4.datasets.readers.coco_boxes import CocoBoxesReader
from minigpt4.datasets.readers.flickr30k import Flickr30kReader
from minigpt4.datasets.readers.folder import FolderReader
from minigpt4.datasets.readers.rows import Reader, RowProblem
from minigpt4.datasets.readers.table_triples import TableTriplesReader
from minigpt4.datasets.readers.tables import CsvReader, JsonlReader

__all__ = [
    "CcSbuAlignReader",
    "CocoBoxesReader",
    "CsvReader",
    "Flickr30kReader",
    "FolderReader",
    "JsonlReader",
    "Reader",
    "RowProblem",
    "TableTriplesReader",
]
