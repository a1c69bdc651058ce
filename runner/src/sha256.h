// SHA-256 (FIPS 180-4), as lower-case hexadecimal digits.
#pragma once

#include <string>

#include "files.h"

namespace edge {

std::string sha256(const Bytes& bytes);

}  // namespace edge
