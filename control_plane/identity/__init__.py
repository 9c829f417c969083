"""Who is who: the mesh's certificate authority, its roots and how they change, and the proofs of those who ask."""
