// NumPy's files: one array (.npy), or several in a zip (.npz).
#pragma once

#include <map>
#include <string>
#include <vector>

#include "files.h"

namespace edge {

struct Tensor {
  std::string dtype;  // as NumPy writes it: "|u1", "<f4", "<i8"
  std::vector<std::size_t> shape;
  Bytes data;  // in C order

  std::size_t count() const;           // of elements
  std::vector<float> floats() const;   // of a "<f4"; throws Refused for others
  std::string words() const;           // for messages: |u1 (16, 64, 64)
};

// Throws Refused, naming `where`, if the bytes are not what NumPy writes, or of more than 2^28 elements.
Tensor read_npy(const Bytes& bytes, const std::string& where);
std::map<std::string, Tensor> read_npz(const Bytes& bytes, const std::string& where);

}  // namespace edge
