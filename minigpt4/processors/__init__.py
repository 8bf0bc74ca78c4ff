"""Images and captions as the model takes them; importing the package registers the processors."""

from minigpt4.processors.image import ImageProcessor
from minigpt4.processors.text import BlipCaption, PlainText

__all__ = ["BlipCaption", "ImageProcessor", "PlainText"]
