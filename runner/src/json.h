// The JSON that manifests are written in (RFC 8259), read with limits.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "files.h"

namespace edge {

class Json {
 public:
  // Throws Refused where the text is no JSON, nested deeper than 64, or holds a name twice.
  static Json parse(const Bytes& text, const std::string& where);

  // Each throws Refused, naming the place, where the value is missing or of another kind.
  const Json& operator[](const std::string& name) const;
  const std::vector<Json>& list() const;
  const std::string& text() const;
  double number() const;
  std::size_t count() const;  // a number that is whole, not negative and below 2^31
  bool empty() const { return kind_ == Kind::null; }

 private:
  friend class JsonReader;
  enum class Kind { null, boolean, number, text, list, object };
  [[noreturn]] void wrong(const std::string& wanted) const;

  Kind kind_ = Kind::null;
  std::string place_;  // in the document, for messages
  double number_ = 0;
  std::string text_;
  std::vector<Json> list_;
  std::map<std::string, Json> object_;
};

// A text as JSON, with its quotes. What is no UTF-8 becomes a question mark.
std::string quoted(const std::string& text);

// A text for a terminal: neither control characters nor what is no UTF-8.
std::string printable(const std::string& text);

}  // namespace edge
