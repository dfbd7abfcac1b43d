"""Latent autoencoders behind one interface."""

from anystep.codecs.codec import AutoencoderCodec, Codec, IdentityCodec, load_codec, to_uint8

__all__ = ["AutoencoderCodec", "Codec", "IdentityCodec", "load_codec", "to_uint8"]
