"""Operations on tensors that the layers are made of."""
