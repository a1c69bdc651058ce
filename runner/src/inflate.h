// DEFLATE (RFC 1951), for the arrays of a bundle and for PNG files, and the two checksums that go with it.
#pragma once

#include "files.h"

namespace edge {

// Unpacks a raw DEFLATE stream that must give exactly `size` bytes. Throws Refused, naming `where`, if it does not.
Bytes inflate(const std::uint8_t* data, std::size_t length, std::size_t size, const std::string& where);

std::uint32_t crc32(const std::uint8_t* data, std::size_t length);
std::uint32_t adler32(const Bytes& bytes);

}  // namespace edge
