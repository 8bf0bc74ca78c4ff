"""Stage 2's data, made with the stage-1 model: `python -m minigpt4.curate describe|refine|filter|review|export`.

ledger.py    what was done to each sample, and the state that leaves it in: accepted + rejected + pending = drawn
describe.py  images drawn at random -> descriptions by the stage-1 model
refine.py    descriptions -> corrections, by one of `refiners/`
filter.py    corrections -> kept, or rejected by a named rule
review.py    a reviewer accepts, edits or rejects, on a page of this machine
export.py    accepted samples -> the folder that the card `cc_sbu_align` reads
"""
