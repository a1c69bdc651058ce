// What is wrong with a bundle, an input or the runtime, in words for whoever starts the program.
#pragma once

#include <stdexcept>
#include <string>

namespace edge {

struct Refused : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace edge
