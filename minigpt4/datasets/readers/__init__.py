"""Annotation formats. The module of a reader is imported when its name is looked up."""

FILES = {
    "captions": ("captions",),
    "cc_sbu_align": ("cc_sbu_align",),
    "coco_boxes": ("coco_boxes",),
    "conversations": ("conversations",),
    "flickr30k": ("flickr30k",),
    "folder": ("folder",),
    "grounded": ("grounded",),
    "instructions": ("instructions",),
    "referring": ("identify", "refer"),
    "statements": ("hateful_memes", "hateful_memes_choices", "vsr", "vsr_choices"),
    "table_triples": ("table_triples",),
    "tables": ("csv", "jsonl"),
    "visual_genome": ("visual_genome", "visual_genome_identify"),
    "vqa": ("vqa", "vqa_choices"),
}
"""The names that each file here registers."""
PLACES = {name: f"{__name__}.{file}" for file, names in FILES.items() for name in names}
