"""Pictures with captions in tar files, as webdataset and img2dataset lay them out, read at any place.

webdataset reads a tar from its beginning to its end: which sample comes next then depends on the number of processes
and loader workers, and a run that goes on has to read again what it had read. Here every shard is looked through once
and the places of its samples are kept in an index; from then on a sample is one seek and one read away, whatever came
before it. So shards are an ordinary dataset: the sampler decides what comes next, the mixture of several datasets is
exact, any number of processes sees the same samples in each step, and a resumed run goes on with the very next one.

What made this feasible at a hundred million samples: the index takes 24 bytes a sample, is memory-mapped a shard at a
time, and no list of all samples is ever made; the order (`orders.ShardShuffle`) shuffles shards, and samples within a
group of shards, so that few files are read at a time and each of them nearly in one go.
The price is that shards have to be files: a stream (`pipe:`, `https:`) cannot be read at any place.

    files.py    patterns of a configuration -> paths
    scan.py     one tar -> the places of its samples, and what is wrong with it
    index.py    all shards of a dataset -> their index on disk, made once and checked by size and time of change
    records.py  a sample's number -> its picture and its caption
    dataset.py  -> encoded samples
    check.py    everything read once, for `python -m minigpt4.datasets.check`
"""
