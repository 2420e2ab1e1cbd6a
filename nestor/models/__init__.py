"""Networks, their pretrained weights and their rivals."""
