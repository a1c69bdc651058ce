// Files read whole, with a limit, so that what was hashed is what is parsed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace edge {

using Bytes = std::vector<std::uint8_t>;

// Everything in a regular file. Throws Error where it is missing, no file, or longer than `limit` bytes.
Bytes read_file(const std::string& path, std::size_t limit);

}  // namespace edge
