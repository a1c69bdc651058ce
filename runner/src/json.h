// JSON: manifests are read, output is quoted. nlohmann/json does the work.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "files.h"

namespace edge {

// A value of a document that knows its place there, so that a message can name it. Keeps the document alive.
class JsonValue {
 public:
  // Each throws Error, naming the place, where the value is missing or of another type.
  JsonValue operator[](const std::string& key) const;
  bool has(const std::string& key) const;  // never throws
  std::vector<JsonValue> items() const;
  std::vector<std::string> keys() const;  // of an object
  std::string string() const;
  bool boolean() const;
  double number() const;
  std::size_t count() const;  // a whole number, at least 0 and below 2^31

 private:
  friend JsonValue parse_json(const Bytes& text, const std::string& file);
  JsonValue(std::shared_ptr<const nlohmann::json> value, std::string place) : value_(std::move(value)), place_(std::move(place)) {}
  [[noreturn]] void fail(const std::string& expected) const;

  std::shared_ptr<const nlohmann::json> value_;
  std::string place_;
};

// Throws Error where the text is not JSON (RFC 8259), is nested deeper than 64, or holds a key twice.
JsonValue parse_json(const Bytes& text, const std::string& file);

// A text as a JSON string in ASCII, as Python's json.dumps writes it. Bytes that are not UTF-8 become U+FFFD.
std::string quote_json(const std::string& text);

// A text as one line for a terminal: control characters are escaped, bytes that are not UTF-8 become U+FFFD.
std::string escape_for_terminal(const std::string& text);

}  // namespace edge
