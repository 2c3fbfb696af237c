"""The article's question, measured: what an MLP and an attention learn of one known view transformation, and at what
cost.

The task is the smallest that has all of it: random features of one camera in, their inverse perspective mapping onto
the ground out, and between them one matrix A of cells by tokens, ``O = A·X·Wv``. What a method is, is how A comes
about.

Letters in shape comments: s seeds (or runs that are trained side by side), b samples, t tokens (h·w of the features),
q cells of the ground that the nominal camera sees, c channels of the features, o channels of the target, d width of
queries and keys.
"""
