"""Images with captions in tar files, in the layout of webdataset and img2dataset, read in any order.

webdataset reads a tar from its beginning to its end: which sample comes next then depends on the number of processes
and loader workers, and a resumed run has to read again what it had read. Here every shard is scanned once and the
positions of its samples are kept in an index; from then on a sample is one seek and one read away. So shards are an
ordinary dataset: the sampler decides what comes next, the mixture of several datasets is exact, any number of processes
trains on the same samples in each step, and a resumed run continues with the next one.

It scales to a hundred million samples: the index takes 24 bytes a sample and is memory-mapped a shard at a time, and no
list of all samples is ever made; the order (`sampler.ShardShuffle`) shuffles shards, and samples within a group of
shards, so that few files are read at a time and each of them almost sequentially.
Shards elsewhere (`https:`, `s3:`, `pipe:`) are copied when they are first needed, since a stream cannot be read in any
order.

    index.py    patterns of a configuration -> paths; a tar -> the positions of its samples; all of them -> an index on
                disk, made once and checked by size and time of change
    remote.py   copies of shards that are elsewhere
    dataset.py  a sample's number -> its image and caption -> an encoded sample
"""
