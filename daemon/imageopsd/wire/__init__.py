"""How it is written: Compute JSON and job files, both ways, pure.

What comes out of here has the right types and no field we do not know; the rules on values stand in
`model.requests`. Nothing here sends or receives anything.
"""
