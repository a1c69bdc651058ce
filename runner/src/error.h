// What is wrong with a bundle, an input or the runtime, as one message for whoever starts the program.
#pragma once

#include <stdexcept>
#include <string>

namespace edge {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace edge
