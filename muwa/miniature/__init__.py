"""The miniature: invented people and objects, images in the formats of real data, and models of them."""
