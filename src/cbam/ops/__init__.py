"""The attention arithmetic on tensors.

`reference` is plain torch and defines what every backend must return; `signature` is the fused operator's interface;
`dispatch` chooses a `backend`, and `fused` calls it.
"""
