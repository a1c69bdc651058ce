// A bundle as it was built: every file hashed before anything in it is believed.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "picture.h"

namespace edge {

struct Bundle {
  std::map<std::string, Bytes> files;   // those that are needed, as they were hashed
  std::size_t vouched = 0;              // how many files SHA256SUMS names; all are intact
  std::string runtime, runtime_built;   // that the model is for, and the version that it was checked with
  std::string precision_hint;
  std::size_t threads = 1;
  std::vector<std::string> model;       // the first is opened, the second has its weights
  Preprocess sees;
  std::vector<std::string> classes;
  double step = 1, tolerance = 0;       // of the golden answers: a quantization step, and how many of them are allowed
  std::vector<Pixels> golden;
  std::vector<std::vector<float>> answers;
};

// Throws Refused, naming the file, where one is missing, was changed, or is not as a manifest of schema 1 says.
Bundle load(const std::string& folder);

}  // namespace edge
