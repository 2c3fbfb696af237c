"""The study of the article's question: what an MLP and an attention learn of a known view transformation, and its cost.

The smallest task maps random features of one camera to their inverse perspective mapping onto the ground plane. A
method is ``O = A·X·Wv`` with one matrix A, cells by tokens. Methods differ in how they compute A.

Letters in shape comments: s seeds (or runs that are trained side by side), b samples, t tokens (h·w of the features),
q cells of the ground that the nominal camera sees, c channels of the features, o channels of the target, d width of
queries and keys.
"""
