"""Stage 2's data, made with the stage-1 model: `python -m minigpt4.curate describe|refine|filter|review|export`.

ledger.py    what was done to each sample, one JSON object a line, only ever appended to
case.py      the lines of a sample -> where it stands; accepted, rejected and pending add up to all
draw.py      which pictures, by lot
describe.py  pictures -> descriptions by the stage-1 model
refine.py    descriptions -> corrections, by one of `refiners/`
rules.py     corrections -> kept, or rejected by a rule with its name
review.py    a person accepts, edits or rejects, on a page of this machine
export.py    what was accepted -> the folder that the card `cc_sbu_align` reads
"""
