"""Where parity is lost first: the layer, the operation, the tensor, and the likely cause; it judges no artifact."""

from validation.localise.search import localise as localise
