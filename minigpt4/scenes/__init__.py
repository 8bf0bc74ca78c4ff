"""Drawn scenes of coloured shapes, with captions and scores: for the quick start, the tests and the tiny recipe.

vocabulary.py  the words, and what a scene is
sampling.py    random scenes, divided into train, val and test
drawing.py     a scene -> its image
captions.py    a scene -> five captions
files.py       collections of scenes on disk, as Flickr30k or as shards
scores.py      do captions name the right objects?
"""
