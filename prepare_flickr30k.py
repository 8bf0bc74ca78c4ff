"""Turn Flickr30k's annotations into the JSON that training and evaluation read; see --help."""

from minigpt4.datasets.flickr30k_prepare import main

if __name__ == "__main__":
    main()
