"""Annotation formats. Importing this package registers every reader."""

from minigpt4.datasets.readers import cc_sbu_align, coco_boxes, flickr30k, folder, table_triples, tables

__all__ = ["cc_sbu_align", "coco_boxes", "flickr30k", "folder", "table_triples", "tables"]
